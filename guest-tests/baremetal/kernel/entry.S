// From the PVH entry point (32-bit, paging off, ebx = hvm_start_info) to long mode and kernel_main.
// Source: Xen's "PVH/HVM direct boot ABI" (docs/misc/pvh.html), Intel SDM vol. 3 section 10.8.5.

  .section .note.Xen, "a", @note
  .balign 4
  .long 4, 8, 18                 // name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
  .asciz "Xen"
  .quad pvh_entry

  .section .text.entry, "ax"
  .code32
  .globl pvh_entry
pvh_entry:
  cli
  cld
  movl $boot_stack_top, %esp
  movl %ebx, %edi                // first argument of kernel_main
  call enter_long_mode
  ljmp $0x08, $start64

// Turns paging on with the boot page tables. Clobbers eax, ecx, edx. Shared with the AP trampoline.
  .globl enter_long_mode
enter_long_mode:
  lgdt gdt_pointer
  movl $0x20, %eax               // CR4.PAE
  movl %eax, %cr4
  movl $boot_pml4, %eax
  movl %eax, %cr3
  movl $0xc0000080, %ecx         // EFER
  rdmsr
  orl $0x100, %eax               // LME
  wrmsr
  movl $0x80010033, %eax         // PG | WP | NE | ET | MP | PE
  movl %eax, %cr0
  ret

  .code64
start64:
  movw $0x10, %ax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss
  xorl %eax, %eax
  movw %ax, %fs
  movw %ax, %gs
  movl $boot_stack_top, %esp
  movl %edi, %edi
  xorl %ebp, %ebp
  call kernel_main
1:
  cli
  hlt
  jmp 1b

  .section .rodata
  .balign 16
  .globl gdt
gdt:
  .quad 0
  .quad 0x00af9b000000ffff       // 0x08: 64-bit code
  .quad 0x00cf93000000ffff       // 0x10: data
  .quad 0x00cf9b000000ffff       // 0x18: 32-bit code, on an AP's way up
gdt_end:
  .globl gdt_pointer
gdt_pointer:
  .word gdt_end - gdt - 1
  .quad gdt

// Page tables, filled at assembly time: they cost the guest no instruction. The first 3 GiB are
// write-back, the fourth (the MMIO hole) is uncached. More is mapped by map_identity().
  .data
  .balign 4096
  .globl boot_pml4
boot_pml4:
  .quad boot_pdpt + 0x3
  .fill 511, 8, 0
  .globl boot_pdpt
boot_pdpt:
  .quad boot_pd + 0x3
  .quad boot_pd + 0x1003
  .quad boot_pd + 0x2003
  .quad boot_pd + 0x3003
  .fill 508, 8, 0
boot_pd:
  .set frame, 0
  .rept 1536
  .quad frame + 0x83             // present, writable, 2 MiB
  .set frame, frame + 0x200000
  .endr
  .rept 512
  .quad frame + 0x9b             // and PCD, PWT
  .set frame, frame + 0x200000
  .endr

  .bss
  .balign 4096
  .skip 32768
boot_stack_top:
