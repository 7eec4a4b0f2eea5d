# find_package(cosegflow CONFIG): the imported target cosegflow::cosegflow, the kernels without torch (docs/cpp.md).
#
# Components: CPU (always there) and CUDA (the *_cuda launch functions; only where the build had nvcc).
# Variables: cosegflow_HAS_CUDA, cosegflow_INCLUDE_DIR, cosegflow_LIBRARY.
#
# The file lies in the package as it was installed, so nothing in it is filled in: what was built is read from
# _build_info.json, which the build writes.

if(CMAKE_VERSION VERSION_LESS 3.19)
  set(cosegflow_FOUND FALSE)
  set(cosegflow_NOT_FOUND_MESSAGE "cosegflow needs CMake 3.19 or newer (pip install cmake)")
  return()
endif()

get_filename_component(_cosegflow_package "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
set(cosegflow_LIBRARY "${_cosegflow_package}/libcosegflow.so")
set(cosegflow_INCLUDE_DIR "${_cosegflow_package}/include")
if(NOT EXISTS "${cosegflow_INCLUDE_DIR}")  # an editable install
  get_filename_component(cosegflow_INCLUDE_DIR "${_cosegflow_package}/../csrc/include" ABSOLUTE)
endif()

foreach(_cosegflow_path "${cosegflow_LIBRARY}" "${cosegflow_INCLUDE_DIR}/cosegflow/types.h"
                        "${_cosegflow_package}/_build_info.json")
  if(NOT EXISTS "${_cosegflow_path}")
    set(cosegflow_FOUND FALSE)
    set(cosegflow_NOT_FOUND_MESSAGE
        "cosegflow is not built: there is no ${_cosegflow_path}. Install it: pip install --no-build-isolation . in its folder")
    return()
  endif()
endforeach()

file(READ "${_cosegflow_package}/_build_info.json" _cosegflow_build)
string(JSON _cosegflow_cuda GET "${_cosegflow_build}" cuda)  # nvcc's version, or empty for null
string(JSON _cosegflow_cuda_reason GET "${_cosegflow_build}" cuda_reason)
set(cosegflow_CPU_FOUND TRUE)
set(cosegflow_HAS_CUDA TRUE)
if(_cosegflow_cuda STREQUAL "")
  set(cosegflow_HAS_CUDA FALSE)
endif()
set(cosegflow_CUDA_FOUND ${cosegflow_HAS_CUDA})

foreach(_cosegflow_component IN LISTS cosegflow_FIND_COMPONENTS)
  if(cosegflow_${_cosegflow_component}_FOUND OR NOT cosegflow_FIND_REQUIRED_${_cosegflow_component})
    continue()
  endif()
  set(cosegflow_FOUND FALSE)
  if(_cosegflow_component STREQUAL "CUDA")
    set(cosegflow_NOT_FOUND_MESSAGE
        "this build of cosegflow has no CUDA kernels: ${_cosegflow_cuda_reason}. Install the CUDA toolkit (nvcc), then \
reinstall with COSEGFLOW_FORCE_CUDA=1")
  else()
    set(cosegflow_NOT_FOUND_MESSAGE "cosegflow has no component ${_cosegflow_component}: there are CPU and CUDA")
  endif()
  return()
endforeach()

if(NOT TARGET cosegflow::cosegflow)
  add_library(cosegflow::cosegflow SHARED IMPORTED)
  set_target_properties(cosegflow::cosegflow PROPERTIES
    IMPORTED_LOCATION "${cosegflow_LIBRARY}"
    IMPORTED_SONAME "libcosegflow.so"
    INTERFACE_INCLUDE_DIRECTORIES "${cosegflow_INCLUDE_DIR}"
    INTERFACE_COMPILE_FEATURES cxx_std_17)
endif()
