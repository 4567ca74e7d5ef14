# Flags and the helper functions every folder uses.
find_package(Threads REQUIRED)
find_package(GTest REQUIRED)

add_library(lethe_flags INTERFACE)
target_include_directories(lethe_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(lethe_flags INTERFACE
  -Wall -Wextra -Werror -Wshadow -Wnon-virtual-dtor -Wthread-safety -Wconversion
  -Wno-sign-conversion
  # The structs of the Linux UAPI that end in a flexible array are put in front of their array.
  -Wno-gnu-variable-sized-type-not-at-end
  -fPIE -fstack-protector-strong -fno-omit-frame-pointer -ffunction-sections -fdata-sections)
target_compile_definitions(lethe_flags INTERFACE _GNU_SOURCE)
# Functions of the same code become one: nothing compares their addresses.
target_link_options(lethe_flags INTERFACE -fuse-ld=lld -Wl,--gc-sections -Wl,--icf=all)
if(LETHE_SANITIZE)
  target_compile_options(lethe_flags INTERFACE -fsanitize=${LETHE_SANITIZE}
    -fno-sanitize-recover=all)
  target_link_options(lethe_flags INTERFACE -fsanitize=${LETHE_SANITIZE})
endif()
if(LETHE_FUZZ)
  target_compile_options(lethe_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

# Tests' own files, with sanitizers: optimising them took two thirds of such a build. What they test
# is optimised as before.
function(lethe_quick_to_build target)
  if(LETHE_SANITIZE)
    target_compile_options(${target} PRIVATE -O0)
  endif()
endfunction()

# The precompiled headers: one for tests, one for the rest.
if(LETHE_PCH)
  file(WRITE ${CMAKE_BINARY_DIR}/precompiled.cc "")
  foreach(kind precompiled test_precompiled)
    add_library(lethe_${kind} OBJECT ${CMAKE_BINARY_DIR}/precompiled.cc)
    target_link_libraries(lethe_${kind} PRIVATE lethe_flags)
    target_precompile_headers(lethe_${kind} PRIVATE ${PROJECT_SOURCE_DIR}/cmake/${kind}.h)
    # What ccache needs to know a precompiled header again.
    target_compile_options(lethe_${kind} PRIVATE -Xclang -fno-pch-timestamp)
  endforeach()
  target_link_libraries(lethe_test_precompiled PRIVATE GTest::gtest GTest::gmock)
  lethe_quick_to_build(lethe_test_precompiled)
endif()
# lethe_precompiled_for(target test_precompiled|precompiled)
function(lethe_precompiled_for target kind)
  if(LETHE_PCH)
    target_precompile_headers(${target} REUSE_FROM lethe_${kind})
  endif()
endfunction()

# Objects hold both kinds of code: programs are optimised across files, tests link quickly.
function(lethe_optimise_across_files target)
  if(LETHE_LTO)
    target_compile_options(${target} PRIVATE -flto=thin -ffat-lto-objects)
  endif()
endfunction()

# One static library a folder: every .cc below it that is not a test, a program, a fuzzer or a fake
# (which tests and benches link).
# lethe_library(name [HERE] [DEPS ...])
# HERE: not those of the folders below, which are no part of it.
function(lethe_library name)
  cmake_parse_arguments(ARG "HERE" "" "DEPS" ${ARGN})
  if(ARG_HERE)
    file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cc)
  else()
    file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cc)
  endif()
  list(FILTER sources EXCLUDE REGEX "(_test|_main|_fuzz)\\.cc$|/fake_[^/]*\\.cc$")
  add_library(${name} STATIC ${sources})
  target_link_libraries(${name} PUBLIC lethe_flags ${ARG_DEPS})
  lethe_optimise_across_files(${name})
  lethe_precompiled_for(${name} precompiled)
endfunction()

# A library that only tests and benches link.
# lethe_test_library(name SOURCES ... DEPS ...)
function(lethe_test_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC EXCLUDE_FROM_ALL ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC ${ARG_DEPS})
  lethe_optimise_across_files(${name})
  lethe_precompiled_for(${name} precompiled)
endfunction()

# lethe_test_program(name SOURCES ... [DEPS ...])
function(lethe_test_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE lethe_flags ${ARG_DEPS} GTest::gtest GTest::gmock
    GTest::gtest_main Threads::Threads)
  lethe_quick_to_build(${name})
  lethe_precompiled_for(${name} test_precompiled)
endfunction()

# One test program a folder, of all the *_test.cc below it; ctest label "unit", target unit_tests.
# lethe_tests(library [HERE] [DEPS ...])
add_custom_target(unit_tests)
function(lethe_tests library)
  cmake_parse_arguments(ARG "HERE" "" "DEPS" ${ARGN})
  if(ARG_HERE)
    file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*_test.cc)
  else()
    file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*_test.cc)
  endif()
  lethe_test_program(${library}_tests SOURCES ${sources} DEPS ${library} ${ARG_DEPS} rapidcheck)
  lethe_unit_test(${library} ${library}_tests)
endfunction()
function(lethe_unit_test name program)
  add_test(NAME ${name} COMMAND ${program})
  set_tests_properties(${name} PROPERTIES LABELS unit TIMEOUT 300)
  add_dependencies(unit_tests ${program})
endfunction()

# A program linked in the way the preset asks for.
# lethe_program(name [DYNAMIC] SOURCES ... DEPS ...)
# DYNAMIC: never static, for a library that Debian has as a shared one only.
function(lethe_program name)
  cmake_parse_arguments(ARG "DYNAMIC" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE lethe_flags ${ARG_DEPS} Threads::Threads)
  lethe_optimise_across_files(${name})
  lethe_precompiled_for(${name} precompiled)
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
