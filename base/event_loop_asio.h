// For the few files that speak Asio themselves (the control API's sockets): the io_context behind a
// loop, so that they need no thread of their own. Their library is compiled with
// BOOST_ASIO_SEPARATE_COMPILATION, as base is; nothing else includes this.
#pragma once

#include <boost/asio/io_context.hpp>

#include "base/event_loop.h"

namespace lethe {

// As long as the loop lives. What is made of it is used on the loop's thread.
[[nodiscard]] boost::asio::io_context& asio_context(EventLoop& loop);

}  // namespace lethe
