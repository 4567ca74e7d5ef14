// A guest that does nothing, for ever: the `density` benchmark runs many of them.

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
  cli
  hlt
  jmp pvh_entry
