// Boost.JSON's own code, compiled once: Debian ships the library shared only.
#include <boost/json/src.hpp>
