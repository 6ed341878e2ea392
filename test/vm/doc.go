// Package vm runs jobs in virtual machines: a kernel of choice, a small first root file system of ours, and disks.
//
// A [Machine] is a value: what it is made of, and how long it may take. An [Emulator] runs it; no acceleration by the
// host's processor is asked for, so that machines of other architectures, and of hosts that are virtual machines
// themselves, run alike.
//
// In the machine the program test/vm/guest is the first process. It loads modules, mounts the disks and does the [Job]:
// it runs programs one after the other, or hands the machine over to the root disk's own first process. What happens
// comes as [Event] values over a port of its own, line by line, at once: of a machine that hangs is known what it had
// done. The console, on which the kernel speaks, goes to a file.
package vm
