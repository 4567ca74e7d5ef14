#include "vmm/kvm/kvm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace lethe {
namespace {

using ::testing::HasSubstr;

TEST(Kvm, says_what_to_do_when_the_device_is_missing) {
  const auto kvm = Kvm::open("/nonexistent/kvm");
  ASSERT_FALSE(kvm);
  EXPECT_EQ(kvm.error().kind, ErrorClass::kKvm);
  EXPECT_THAT(kvm.error().text, HasSubstr("/nonexistent/kvm is missing: load the kvm_intel"));
}

TEST(Kvm, refuses_a_device_that_does_not_speak_its_api) {
  const auto kvm = Kvm::open("/dev/null");
  ASSERT_FALSE(kvm);
  EXPECT_EQ(kvm.error().kind, ErrorClass::kKvm);
  EXPECT_THAT(kvm.error().text, HasSubstr("KVM API version"));
}

TEST(Kvm, names_the_group_when_permission_is_denied) {
  char path[] = "/tmp/lethe-kvm-XXXXXX";
  const UniqueFd file(::mkstemp(path));
  ASSERT_TRUE(file.valid());
  ASSERT_EQ(::fchmod(file.get(), 0), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    // Root may open anything: somebody else is needed.
    if (::geteuid() == 0 && ::setuid(65534) != 0) ::_exit(2);
    const auto kvm = Kvm::open(path);
    ::_exit(!kvm && kvm.error().kind == ErrorClass::kKvm &&
                    kvm.error().text.find("add your user to the 'kvm' group") != std::string::npos
                ? 0
                : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  ::unlink(path);
}

}  // namespace
}  // namespace lethe
