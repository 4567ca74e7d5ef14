// For tests: what a user without privileges meets, where the tests run as root, which may do
// anything.
#pragma once

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "base/unique_fd.h"

namespace lethe {

// What `speak` returns to such a user: it is called in a child, with one thread.
template <typename Speak>
std::string said_to_another_user(Speak&& speak) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return "no pipe";
  const UniqueFd out(ends[0]);
  UniqueFd in(ends[1]);
  const pid_t child = ::fork();
  if (child == 0) {
    const std::string said =
        ::geteuid() == 0 && ::setuid(65534) != 0 ? "still root" : std::string(speak());
    const ssize_t written = ::write(in.get(), said.data(), said.size());
    ::_exit(written == static_cast<ssize_t>(said.size()) ? 0 : 1);
  }
  in.reset();
  std::string said;
  char part[512];
  for (ssize_t got; (got = ::read(out.get(), part, sizeof part)) > 0;)
    said.append(part, static_cast<size_t>(got));
  int status = 0;
  if (::waitpid(child, &status, 0) != child || status != 0) return "the child failed";
  return said;
}

}  // namespace lethe
