# Defines the target `onnxruntime_headers`: ONNX Runtime's C headers (API 29), which onnxruntime-node does not carry.
# ORT_INCLUDE_DIR names a folder of the user's own; else a pinned npm package that carries the official headers is fetched once
# into the build folder and only the headers are kept.
set(ORT_INCLUDE_DIR "" CACHE PATH "Folder with onnxruntime_c_api.h; empty: take the headers from a pinned npm package")

set(_ort_package "com.github.asus4.onnxruntime@0.4.9")
set(_ort_sha512 "064cf176e499f4891e0cfe90f25cf64c553689eee1492bd2ed921fccca28131a2ad02373267bae19a509ec8b288c182a3b8a2e0f58d76a1f0e63225b08ddbd16")
# Beside the build folders, so that all of them share what was fetched once.
set(_ort_headers "${CMAKE_SOURCE_DIR}/build/onnxruntime-headers")
set(_ort_in_package "package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers")

function(_flashllm_fetch_ort_headers)
  find_program(NPM npm REQUIRED)
  set(work "${_ort_headers}.fetch")
  file(REMOVE_RECURSE "${work}")
  file(MAKE_DIRECTORY "${work}")
  message(STATUS "flashllm: fetching ONNX Runtime's headers with npm (150 MB, once; set ORT_INCLUDE_DIR to use your own)")
  execute_process(COMMAND "${NPM}" pack "${_ort_package}" --ignore-scripts --silent --pack-destination "${work}"
                  WORKING_DIRECTORY "${work}" RESULT_VARIABLE result ERROR_VARIABLE error OUTPUT_QUIET)
  file(GLOB tarball "${work}/*.tgz")
  if(result OR NOT tarball)
    message(FATAL_ERROR "flashllm: npm could not fetch ${_ort_package}: ${error}\n"
                        "Set ORT_INCLUDE_DIR to a folder with onnxruntime_c_api.h and onnxruntime_ep_c_api.h (ONNX Runtime 1.29 or later).")
  endif()
  file(SHA512 "${tarball}" found)
  if(NOT found STREQUAL _ort_sha512)
    file(REMOVE_RECURSE "${work}")
    message(FATAL_ERROR "flashllm: ${_ort_package} has SHA-512 ${found}, expected ${_ort_sha512}. "
                        "The download is damaged or was replaced: try again, or set ORT_INCLUDE_DIR.")
  endif()
  execute_process(COMMAND "${CMAKE_COMMAND}" -E tar xzf "${tarball}" "${_ort_in_package}" WORKING_DIRECTORY "${work}"
                  RESULT_VARIABLE result)
  if(result)
    message(FATAL_ERROR "flashllm: ${tarball} does not unpack (${result}).")
  endif()
  file(REMOVE_RECURSE "${_ort_headers}")
  file(RENAME "${work}/${_ort_in_package}" "${_ort_headers}")
  file(REMOVE_RECURSE "${work}")
endfunction()

if(ORT_INCLUDE_DIR)
  set(_ort_include "${ORT_INCLUDE_DIR}")
else()
  if(NOT EXISTS "${_ort_headers}/onnxruntime_ep_c_api.h")
    _flashllm_fetch_ort_headers()
  endif()
  set(_ort_include "${_ort_headers}")
endif()
if(NOT EXISTS "${_ort_include}/onnxruntime_c_api.h" OR NOT EXISTS "${_ort_include}/onnxruntime_ep_c_api.h")
  message(FATAL_ERROR "flashllm: ${_ort_include} does not hold onnxruntime_c_api.h and onnxruntime_ep_c_api.h.")
endif()

add_library(onnxruntime_headers INTERFACE)
target_include_directories(onnxruntime_headers SYSTEM INTERFACE "${_ort_include}")
