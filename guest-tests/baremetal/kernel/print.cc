#include "kernel/print.h"

#include <stdint.h>

#include "kernel/cpu.h"

namespace kernel {
namespace {

constexpr uint16_t kLineStatus = kSerialPort + 5;
constexpr uint8_t kTransmitterEmpty = 0x20;
// A port without a UART reads 0xff, which counts as ready; one that is never ready is not waited
// for.
constexpr int kReadyPollsMax = 10000;

void put_char(char c) {
  for (int i = 0; i < kReadyPollsMax && (in8(kLineStatus) & kTransmitterEmpty) == 0; ++i) pause();
  out8(kSerialPort, static_cast<uint8_t>(c));
}

struct Spec {
  bool zero = false;
  unsigned width = 0;
  bool is_long = false;
};

void put_number(uint64_t value, unsigned base, bool negative, const Spec& spec) {
  char digits[24];
  unsigned n = 0;
  do {
    digits[n++] = "0123456789abcdef"[value % base];
    value /= base;
  } while (value != 0);
  unsigned length = n + (negative ? 1 : 0);
  if (negative && spec.zero) put_char('-');
  for (; length < spec.width; ++length) put_char(spec.zero ? '0' : ' ');
  if (negative && !spec.zero) put_char('-');
  while (n > 0) put_char(digits[--n]);
}

const char* parse_spec(const char* f, Spec& spec) {
  if (*f == '0') {
    spec.zero = true;
    ++f;
  }
  while (*f >= '0' && *f <= '9') spec.width = spec.width * 10 + static_cast<unsigned>(*f++ - '0');
  while (*f == 'l' || *f == 'z') {
    spec.is_long = true;
    ++f;
  }
  return f;
}

}  // namespace

void serial_init() {
  out8(kSerialPort + 1, 0x00);  // no interrupts
  out8(kSerialPort + 3, 0x80);  // divisor latch
  out8(kSerialPort + 0, 0x01);  // 115200
  out8(kSerialPort + 1, 0x00);
  out8(kSerialPort + 3, 0x03);  // 8n1
  out8(kSerialPort + 2, 0x07);  // FIFOs on and cleared
  out8(kSerialPort + 4, 0x0b);  // DTR, RTS, OUT2
}

void put_string(const char* text, size_t length) {
  for (size_t i = 0; i < length; ++i) put_char(text[i]);
}

void print_va(const char* f, va_list args) {
  for (; *f != 0; ++f) {
    if (*f != '%') {
      put_char(*f);
      continue;
    }
    Spec spec;
    f = parse_spec(f + 1, spec);
    switch (*f) {
      case 'c':
        put_char(static_cast<char>(va_arg(args, int)));
        break;
      case 's':
        for (const char* s = va_arg(args, const char*); *s != 0; ++s) put_char(*s);
        break;
      case 'd': {
        const int64_t v = spec.is_long ? va_arg(args, int64_t) : va_arg(args, int);
        put_number(v < 0 ? 0 - static_cast<uint64_t>(v) : static_cast<uint64_t>(v), 10, v < 0,
                   spec);
        break;
      }
      case 'u':
        put_number(spec.is_long ? va_arg(args, uint64_t) : va_arg(args, unsigned), 10, false, spec);
        break;
      case 'x':
        put_number(spec.is_long ? va_arg(args, uint64_t) : va_arg(args, unsigned), 16, false, spec);
        break;
      case 'p':
        put_number(va_arg(args, uint64_t), 16, false, spec);
        break;
      case 0:
        return;
      default:
        put_char(*f);
    }
  }
}

void print(const char* format, ...) {
  va_list args;
  va_start(args, format);
  print_va(format, args);
  va_end(args);
}

}  // namespace kernel
