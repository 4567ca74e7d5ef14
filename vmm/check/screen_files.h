// Where the steps of a guest's screen are, and where their pictures go.
#pragma once

#include <string>
#include <utility>

#include "base/result.h"
#include "vmm/check/screen_steps.h"

namespace lethe {

class ScreenFiles {
 public:
  // `directory` is made if need be, and rid of the pictures of a failure before; empty: one that is
  // removed in the end. Errors name it.
  [[nodiscard]] static Result<ScreenFiles> create(const std::string& directory,
                                                  const std::string& steps);
  ~ScreenFiles();
  ScreenFiles(ScreenFiles&& other) noexcept
      : x_directory(std::move(other.x_directory)),
        x_temporary(std::exchange(other.x_temporary, false)) {}
  ScreenFiles& operator=(ScreenFiles&&) = delete;

  [[nodiscard]] const std::string& directory() const { return x_directory; }
  [[nodiscard]] std::string steps_file() const { return x_directory + "/steps.json"; }

 private:
  ScreenFiles(std::string directory, bool temporary)
      : x_directory(std::move(directory)), x_temporary(temporary) {}
  std::string x_directory;
  bool x_temporary;
};

}  // namespace lethe
