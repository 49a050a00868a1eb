# Defines the target `onnxruntime_headers`: ONNX Runtime's C headers, which onnxruntime-node does not carry: those of
# third_party/, or others of the user's own.
set(ORT_INCLUDE_DIR "" CACHE PATH "Folder with ONNX Runtime's C headers (1.29 or later); empty: third_party/onnxruntime")
set(_ort_include "${ORT_INCLUDE_DIR}")
if(NOT _ort_include)
  set(_ort_include "${CMAKE_SOURCE_DIR}/third_party/onnxruntime")
endif()
if(NOT EXISTS "${_ort_include}/onnxruntime_c_api.h" OR NOT EXISTS "${_ort_include}/onnxruntime_ep_c_api.h")
  message(FATAL_ERROR "flashllm: ${_ort_include} does not hold onnxruntime_c_api.h and onnxruntime_ep_c_api.h: "
                      "name a folder of ONNX Runtime 1.29 or later by ORT_INCLUDE_DIR, or leave it out.")
endif()

add_library(onnxruntime_headers INTERFACE)
target_include_directories(onnxruntime_headers SYSTEM INTERFACE "${_ort_include}")
