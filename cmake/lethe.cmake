# Flags and the two helper functions every folder uses.
include(CheckPIESupported)
check_pie_supported()
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
find_package(Threads REQUIRED)
find_package(GTest REQUIRED)

add_library(lethe_flags INTERFACE)
target_include_directories(lethe_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(lethe_flags INTERFACE
  -Wall -Wextra -Werror -Wshadow -Wnon-virtual-dtor -Wthread-safety -Wconversion
  -Wno-sign-conversion
  # The structs of the Linux UAPI that end in a flexible array are put in front of their array.
  -Wno-gnu-variable-sized-type-not-at-end
  -fstack-protector-strong -fno-omit-frame-pointer -ffunction-sections -fdata-sections)
target_compile_definitions(lethe_flags INTERFACE _GNU_SOURCE)
target_link_options(lethe_flags INTERFACE -fuse-ld=lld -Wl,--gc-sections)
if(LETHE_SANITIZE)
  target_compile_options(lethe_flags INTERFACE -fsanitize=${LETHE_SANITIZE}
    -fno-sanitize-recover=all)
  target_link_options(lethe_flags INTERFACE -fsanitize=${LETHE_SANITIZE})
endif()
if(LETHE_LTO)
  # Objects hold both kinds of code: programs are optimised across files, tests link quickly.
  target_compile_options(lethe_flags INTERFACE -flto=thin -ffat-lto-objects)
endif()
if(LETHE_FUZZ)
  target_compile_options(lethe_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

# One static library a folder: every .cc below it that is not a test, a program, a fuzzer or a fake
# (which tests and benches link).
# lethe_library(name [DEPS ...])
function(lethe_library name)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cc)
  list(FILTER sources EXCLUDE REGEX "(_test|_main|_fuzz)\\.cc$|/fake_[^/]*\\.cc$")
  add_library(${name} STATIC ${sources})
  target_link_libraries(${name} PUBLIC lethe_flags ${ARG_DEPS})
endfunction()

# One test program a folder, of all the *_test.cc below it; ctest label "unit".
# lethe_tests(library [DEPS ...])
function(lethe_tests library)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*_test.cc)
  if(NOT sources)
    return()
  endif()
  add_executable(${library}_tests ${sources})
  target_link_libraries(${library}_tests PRIVATE ${library} ${ARG_DEPS} GTest::gtest
    GTest::gmock GTest::gtest_main rapidcheck Threads::Threads)
  add_test(NAME ${library} COMMAND ${library}_tests)
  set_tests_properties(${library} PROPERTIES LABELS unit TIMEOUT 300)
endfunction()

# A program linked in the way the preset asks for.
# lethe_program(name [DYNAMIC] SOURCES ... DEPS ...)
# DYNAMIC: never static, for a library that Debian has as a shared one only.
function(lethe_program name)
  cmake_parse_arguments(ARG "DYNAMIC" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} Threads::Threads)
  # A file that the linker writes, not maps, is in larger pages of the page cache, as an installed
  # copy is: a start of `lethe` then takes 0.1 ms less.
  target_link_options(${name} PRIVATE -Wl,--no-mmap-output-file)
  if(LETHE_STATIC AND NOT ARG_DYNAMIC)
    target_link_options(${name} PRIVATE -static-pie)
  endif()
  if(LETHE_LTO)
    target_link_options(${name} PRIVATE -flto=thin -ffat-lto-objects -Wl,--thinlto-jobs=2
      -Wl,--thinlto-cache-dir=${CMAKE_BINARY_DIR}/thinlto)
  endif()
endfunction()

# Fuzzers: every *_fuzz.cc below the folder becomes a program of its own (preset fuzz).
# lethe_fuzzers(library [DEPS ...])
function(lethe_fuzzers library)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  if(NOT LETHE_FUZZ)
    return()
  endif()
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*_fuzz.cc)
  foreach(source ${sources})
    get_filename_component(name ${source} NAME_WE)
    add_executable(${name} ${source})
    target_link_libraries(${name} PRIVATE ${library} ${ARG_DEPS} Threads::Threads)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  endforeach()
endfunction()
