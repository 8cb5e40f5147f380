# Included into llama-cpp-python's project: less than half of what compiling it takes.
#
# llama.cpp has 156 small files of model descriptions, each of which spends its time on the same headers: they are
# compiled eight at a time. Its library of helpers for command lines, which the Python package installs and never
# loads, is reduced to one of its 56 files.
function(deepcoder_compile_less)
  get_target_property(sources llama SOURCES)
  list(FILTER sources EXCLUDE REGEX "models/[^/]*\\.cpp$")
  set_source_files_properties(${sources} TARGET_DIRECTORY llama PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  set_target_properties(llama PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
  set_property(TARGET llama-common PROPERTY SOURCES log.cpp)
endfunction()
cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL deepcoder_compile_less)
