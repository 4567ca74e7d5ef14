// How many descriptors this process may have.
#pragma once

namespace lethe {

// As many as the host lets it, where most processes may have 1024. If that fails, it is logged.
void raise_descriptor_limit();

}  // namespace lethe
