// Boost.Asio's own code, compiled once (BOOST_ASIO_SEPARATE_COMPILATION is set for the library).
#include <boost/asio/impl/src.hpp>
