// The guest of the `snapshot` benchmark: polls the serial port's line status and ends the VM with
// debug-exit value 0 when there is a byte. With a command line that begins with `f` it first fills
// 100 MiB, a word of each page, and says `f` on the serial port. So a cold start and a restore are
// ended by the same few instructions.

  .section .note.Xen, "a", @note
  .balign 4
  .long 4, 4, 18                 // name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
  .asciz "Xen"
  .long pvh_entry
  .long 0                        // some loaders read eight bytes

  .section .text.entry, "ax"
  .code32
  .globl pvh_entry
pvh_entry:
  movl 24(%ebx), %eax            // hvm_start_info: cmdline_paddr
  cmpb $'f', (%eax)
  jne poll
  movl $0x200000, %edi
fill:
  movl %edi, (%edi)
  addl $0x1000, %edi
  cmpl $(0x200000 + 100 * 0x100000), %edi
  jne fill
  movl $0x3f8, %edx
  movb $'f', %al
  outb %al, %dx
poll:
  movl $0x3fd, %edx
1:
  inb %dx, %al
  testb $1, %al
  jz 1b
  xorl %eax, %eax
  outb %al, $0xf4
2:
  cli
  hlt
  jmp 2b
