#include "kernel/cases.h"

#include "kernel/boot.h"
#include "kernel/check.h"
#include "kernel/memory.h"

namespace kernel {
namespace {

constexpr size_t kNamesMax = 256;

void run_one(const char* guest, const Case& c) {
  print("run %s/%s\n", guest, c.name);
  c.run();
  print("ok %s/%s\n", guest, c.name);
}

void run_named(const char* guest, const Case* cases, size_t count, const char* name) {
  for (size_t i = 0; i < count; ++i) {
    if (!strings_equal(name, cases[i].name)) continue;
    run_one(guest, cases[i]);
    return;
  }
  print("no case %s in %s\n", name, guest);
  check_failed(__FILE_NAME__, __LINE__, "the command line names a case that exists");
}

}  // namespace

void run_cases(const char* guest, const Case* cases, size_t count) {
  const char* wanted = option("test");
  if (wanted == nullptr || strings_equal(wanted, "all")) {
    for (size_t i = 0; i < count; ++i) {
      if (!cases[i].alone) run_one(guest, cases[i]);
    }
    return;
  }
  char names[kNamesMax];
  const size_t length = strlen(wanted);
  CHECK(length < kNamesMax);
  memcpy(names, wanted, length + 1);
  for (char* name = names;;) {
    char* end = name;
    while (*end != 0 && *end != ',') ++end;
    const bool last = *end == 0;
    *end = 0;
    run_named(guest, cases, count, name);
    if (last) return;
    name = end + 1;
  }
}

}  // namespace kernel
