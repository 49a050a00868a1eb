# Defines the target `node_api`: Node-API headers and the C++ wrapper over them, from node_modules wherever npm put them.
find_program(NODE node REQUIRED)

function(_flashllm_node_package name out)
  execute_process(COMMAND "${NODE}" -p "require('path').dirname(require.resolve('${name}/package.json'))"
                  WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}" OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE
                  RESULT_VARIABLE result ERROR_QUIET)
  if(result)
    message(FATAL_ERROR "flashllm: the npm package ${name} was not found from ${CMAKE_SOURCE_DIR}. Run npm ci first.")
  endif()
  set(${out} "${folder}" PARENT_SCOPE)
endfunction()

_flashllm_node_package(node-api-headers _node_api_headers)
_flashllm_node_package(node-addon-api _node_addon_api)
add_library(node_api INTERFACE)
target_include_directories(node_api SYSTEM INTERFACE "${_node_api_headers}/include" "${_node_addon_api}")
target_compile_definitions(node_api INTERFACE NAPI_VERSION=8 NODE_ADDON_API_DISABLE_DEPRECATED)
