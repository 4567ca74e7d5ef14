// For tests (label kvm): a running VM's control API; what it answers is checked against
// docs/openapi.json.
#pragma once

#include <string>
#include <string_view>

#include "vmm/api/http_client.h"

namespace lethe_test {

// Empty if the answer is right, else what is wrong.
std::string wrong_with_answer(std::string_view method, std::string_view path, unsigned status,
                              std::string_view type, std::string_view body);

// One request to the socket; an answer that does not come, or is not as documented, fails the test.
lethe::ClientAnswer ask_api(const std::string& socket, const std::string& method,
                            const std::string& path, const std::string& body = "");

// Of a stream of GET /events that has ended, checked: the names in order, each with a space behind.
std::string event_names(const std::string& stream);

}  // namespace lethe_test
