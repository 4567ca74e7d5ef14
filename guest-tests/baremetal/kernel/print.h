// The console of a guest: COM1, polled. Printing works from the first line of kernel_main.
#pragma once

#include <stdarg.h>
#include <stddef.h>

namespace kernel {

inline constexpr unsigned short kSerialPort = 0x3f8;
inline constexpr unsigned kSerialIrq = 4;

// Sets 115200 8n1, FIFOs on, interrupts off. Source: PC16550D data sheet, section 8.
void serial_init();
void put_string(const char* text, size_t length);

// %c %s %d %u %x %p %%, with l, ll and z, a width and a leading zero. Unknown: printed as it
// stands.
[[gnu::format(printf, 1, 2)]] void print(const char* format, ...);
void print_va(const char* format, va_list args);

}  // namespace kernel
