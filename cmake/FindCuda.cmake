# Sets FLASHLLM_HAS_CUDA and enables the CUDA language where nvcc is found (or required).
# One fat binary: sm_80 (mma.sync, cp.async), its PTX for GPUs newer than 9.0, and sm_90a (TMA, mbarrier, wgmma). cudart is linked
# statically, so that the library loads on machines with no NVIDIA driver.
set(FLASHLLM_HAS_CUDA OFF)
if(NOT FLASHLLM_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  # FLASHLLM_CUDA_ARCHITECTURES=90a-real halves the time of a build for one GPU.
  set(FLASHLLM_CUDA_ARCHITECTURES "80;90a-real" CACHE STRING "What the CUDA kernels are compiled for")
  set(CMAKE_CUDA_ARCHITECTURES "${FLASHLLM_CUDA_ARCHITECTURES}")
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    set(FLASHLLM_HAS_CUDA ON)
    message(STATUS "flashllm: CUDA kernels for sm_80 and sm_90a, with ${CMAKE_CUDA_COMPILER}")
  elseif(FLASHLLM_CUDA STREQUAL "ON")
    message(FATAL_ERROR "flashllm: FLASHLLM_CUDA=ON, but nvcc was not found. Put it on PATH or set CUDACXX.")
  else()
    message(STATUS "flashllm: nvcc was not found: building for the CPU only")
  endif()
endif()
