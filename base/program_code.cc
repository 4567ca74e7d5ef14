#include "base/program_code.h"

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <span>
#include <string>

namespace lethe {
namespace {

bool is_traced() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("TracerPid:")) return line.find_first_of("123456789") != std::string::npos;
  return true;  // nobody knows
}

int unmap_parts(dl_phdr_info* program, size_t, void*) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  for (const auto& part : std::span(program->dlpi_phdr, program->dlpi_phnum)) {
    if (part.p_type != PT_LOAD || (part.p_flags & PF_W) != 0) continue;
    const uintptr_t begin = (program->dlpi_addr + part.p_vaddr) / page * page;
    const uintptr_t end = program->dlpi_addr + part.p_vaddr + part.p_memsz;
    // SAFETY: a private mapping of the file that nobody writes to: what comes back is the same.
    (void)::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }
  return 1;  // the program is the first one; libraries, if any, are left alone
}

}  // namespace

void unmap_unused_code() {
  if (!is_traced()) (void)::dl_iterate_phdr(unmap_parts, nullptr);
}

}  // namespace lethe
