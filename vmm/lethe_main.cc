#include "vmm/cli/cli.h"

int main(int argc, char** argv) { return lethe::cli_main(argc, argv); }
