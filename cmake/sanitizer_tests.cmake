# Makes the tests of a second build, one with sanitizers and fuzzers, part of this build's CTest run, each counted by
# itself. That build names its tests "sanitizer." or "fuzz.", so that names stay unique.
set(LARARIUM_SANITIZER_BUILD "" CACHE PATH "A build with sanitizers whose tests are run with those of this one")

if(LARARIUM_SANITIZER_BUILD)
  set(include_file ${CMAKE_BINARY_DIR}/sanitizer_tests.cmake)
  file(WRITE ${include_file} "subdirs(\"${LARARIUM_SANITIZER_BUILD}\")\n")
  set_property(DIRECTORY ${CMAKE_SOURCE_DIR} APPEND PROPERTY TEST_INCLUDE_FILES ${include_file})
endif()
