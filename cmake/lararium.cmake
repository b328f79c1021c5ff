# What every target of the project is built with, and the one way to declare a layer.

# Precompiled headers take a quarter off the time of the build with sanitizers. A file that forgets an include still
# fails in the plain build.
if(LARARIUM_SANITIZE AND CMAKE_CXX_COMPILER_ID STREQUAL Clang)
  set(LARARIUM_PRECOMPILE ON)
endif()

find_program(LARARIUM_CCACHE ccache)
if(LARARIUM_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${LARARIUM_CCACHE})
  if(LARARIUM_PRECOMPILE) # as ccache's manual asks, or it caches nothing
    set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros ${LARARIUM_CCACHE})
    add_compile_options("SHELL:-Xclang -fno-pch-timestamp")
  endif()
endif()

add_library(lararium_options INTERFACE)
target_include_directories(lararium_options INTERFACE ${CMAKE_SOURCE_DIR}/include)
target_compile_options(lararium_options INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wconversion
                       -Wno-sign-conversion -Wnon-virtual-dtor -Woverloaded-virtual -Werror=return-type
                       # GCC 12 sees overlaps in std::string that are not there (its bug 105329)
                       $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>)
if(LARARIUM_SANITIZE)
  target_compile_options(lararium_options INTERFACE -fsanitize=${LARARIUM_SANITIZE} -fno-omit-frame-pointer
                         -fno-sanitize-recover=all)
  target_link_options(lararium_options INTERFACE -fsanitize=${LARARIUM_SANITIZE})
endif()

if(LARARIUM_FUZZ) # the layers too, or the fuzzers would see no coverage of what they test
  target_compile_options(lararium_options INTERFACE -fsanitize=fuzzer-no-link)
endif()

# lararium_precompile(TARGET headers...) makes what is included most, or takes longest, part of a target's precompiled
# headers, which all targets with the same list share.
set(LARARIUM_HEAVY_HEADERS <algorithm> <array> <chrono> <cstdint> <cstring> <filesystem> <fmt/format.h> <functional>
    <future> <map> <memory> <nlohmann/json.hpp> <optional> <set> <span> <string> <string_view> <thread> <unordered_map>
    <variant> <vector>)
function(lararium_precompile target)
  if(NOT LARARIUM_PRECOMPILE)
    return()
  endif()
  string(MD5 name "${ARGN}")
  set(owner lararium_headers_${name})
  if(NOT TARGET ${owner})
    file(WRITE ${CMAKE_BINARY_DIR}/${owner}.cpp "// Nothing but its precompiled headers.\n")
    add_library(${owner} OBJECT ${CMAKE_BINARY_DIR}/${owner}.cpp)
    target_link_libraries(${owner} PRIVATE lararium_options ${LARARIUM_PRECOMPILED_USES})
    target_precompile_headers(${owner} PRIVATE ${ARGN})
  endif()
  target_compile_options(${target} PRIVATE -fPIC) # programs, too: the headers are those of a library
  target_precompile_headers(${target} REUSE_FROM ${owner})
endfunction()

# lararium_layer(NAME SOURCES a.cpp... USES layer... LIBRARIES external...)
# declares the static library of one folder under src/. tools/check_layers checks what it includes.
function(lararium_layer name)
  cmake_parse_arguments(LAYER "" "" "SOURCES;USES;LIBRARIES" ${ARGN})
  add_library(lararium_${name} STATIC ${LAYER_SOURCES})
  add_library(lararium::${name} ALIAS lararium_${name})
  list(TRANSFORM LAYER_USES PREPEND "lararium::")
  target_link_libraries(lararium_${name} PUBLIC lararium_options ${LAYER_USES} PRIVATE ${LAYER_LIBRARIES})
  lararium_precompile(lararium_${name} ${LARARIUM_HEAVY_HEADERS})
endfunction()

# In a build with sanitizers tests are called and labelled so: `make test` runs them beside those of the plain build.
function(lararium_label_test name kind)
  if(LARARIUM_SANITIZE)
    set(kind sanitizer)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS ${kind})
endfunction()
if(LARARIUM_SANITIZE)
  set(LARARIUM_TEST_PREFIX sanitizer.)
endif()

# lararium_unit_test(NAME SOURCES a.cpp... USES layer...) declares a GoogleTest program that CTest runs.
function(lararium_unit_test name)
  cmake_parse_arguments(TEST "" "" "SOURCES;USES;LIBRARIES" ${ARGN})
  add_executable(${name} ${TEST_SOURCES})
  list(TRANSFORM TEST_USES PREPEND "lararium::")
  target_link_libraries(${name} PRIVATE lararium_options ${TEST_USES} ${TEST_LIBRARIES} GTest::gtest_main)
  target_compile_options(${name} PRIVATE -O0) # they are built more often than they run
  set(LARARIUM_PRECOMPILED_USES GTest::gtest)
  lararium_precompile(${name} ${LARARIUM_HEAVY_HEADERS} <gtest/gtest.h>)
  set(test ${LARARIUM_TEST_PREFIX}unit.${name})
  add_test(NAME ${test} COMMAND ${name})
  lararium_label_test(${test} unit)
  set_tests_properties(${test} PROPERTIES TIMEOUT 120)
endfunction()

# lararium_fuzzer(NAME SOURCE USES layer...) declares a libFuzzer program; CTest runs it for a bounded time.
function(lararium_fuzzer name source)
  cmake_parse_arguments(FUZZ "" "" "USES" ${ARGN})
  add_executable(fuzz_${name} ${source})
  list(TRANSFORM FUZZ_USES PREPEND "lararium::")
  target_link_libraries(fuzz_${name} PRIVATE lararium_options ${FUZZ_USES})
  target_compile_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
  target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
  set(corpus ${CMAKE_SOURCE_DIR}/fuzz/corpus/${name})
  set(found ${CMAKE_BINARY_DIR}/fuzz-found/${name})
  file(MAKE_DIRECTORY ${found})
  set(arguments -max_total_time=${LARARIUM_FUZZ_SECONDS} -rss_limit_mb=2048 -timeout=10 -print_final_stats=0 -verbosity=0
                -artifact_prefix=${found}/)
  if(EXISTS ${corpus})
    add_test(NAME fuzz.${name} COMMAND fuzz_${name} ${arguments} ${found} ${corpus})
  else()
    add_test(NAME fuzz.${name} COMMAND fuzz_${name} ${arguments} ${found})
  endif()
  set_tests_properties(fuzz.${name} PROPERTIES LABELS fuzz TIMEOUT 600)
endfunction()
set(LARARIUM_FUZZ_SECONDS 5 CACHE STRING "How long CTest lets each fuzzer run")
