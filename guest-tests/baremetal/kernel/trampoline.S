// Where an AP starts: real mode, copied to 0x8000 by start_other_cpus(), which fills ap_stacks.

  .section .rodata
  .code16
  .balign 16
  .globl ap_trampoline
ap_trampoline:
  cli
  cld
  xorw %ax, %ax
  movw %ax, %ds
  lgdtl 0x8000 + ap_gdt_pointer - ap_trampoline
  movl %cr0, %eax
  orl $1, %eax
  movl %eax, %cr0
  ljmpl $0x18, $ap_start32
  .balign 4
ap_gdt_pointer:
  .word 4 * 8 - 1
  .long gdt
  .globl ap_trampoline_end
ap_trampoline_end:

  .text
  .code32
ap_start32:
  movw $0x10, %ax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss
  xorl %eax, %eax
  movw %ax, %fs
  movw %ax, %gs
  movl $1, %edi
  lock xaddl %edi, ap_next_index // who comes first takes the first stack
  movl ap_stacks(,%edi,8), %esp
  call enter_long_mode
  ljmp $0x08, $ap_start64

  .code64
ap_start64:
  movw $0x10, %ax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss
  movl %edi, %edi
  movq ap_stacks(,%rdi,8), %rsp
  xorl %ebp, %ebp
  call ap_main
1:
  cli
  hlt
  jmp 1b
