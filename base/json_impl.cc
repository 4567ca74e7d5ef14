// Boost.JSON's own code, compiled once: Debian ships the library shared only, too.
#include <boost/json/src.hpp>
