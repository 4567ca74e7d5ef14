// 256 interrupt stubs, 16 bytes apart, and their common part: saves the registers as a
// kernel::TrapFrame and calls trap_dispatch(frame).

  .text
  .balign 16
  .globl trap_stubs
trap_stubs:
  .set vector, 0
  .rept 256
  .balign 16
  // These vectors push an error code themselves (Intel SDM vol. 3, table 6-1).
  .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21)
  pushq $0
  .endif
  pushq $vector
  jmp trap_common
  .set vector, vector + 1
  .endr

trap_common:
  pushq %rax
  pushq %rbx
  pushq %rcx
  pushq %rdx
  pushq %rsi
  pushq %rdi
  pushq %rbp
  pushq %r8
  pushq %r9
  pushq %r10
  pushq %r11
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, %rdi
  cld
  call trap_dispatch             // rsp is 16-byte aligned: the CPU aligned it, then 22 words
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %r11
  popq %r10
  popq %r9
  popq %r8
  popq %rbp
  popq %rdi
  popq %rsi
  popq %rdx
  popq %rcx
  popq %rbx
  popq %rax
  addq $16, %rsp
  iretq
