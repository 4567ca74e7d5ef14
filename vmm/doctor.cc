#include "vmm/doctor.h"

#include <cstdio>

namespace lethe {

int run_doctor(const DoctorOptions&) {
  std::fputs("lethe: the doctor is not built yet\n", stderr);
  return 1;
}

}  // namespace lethe
