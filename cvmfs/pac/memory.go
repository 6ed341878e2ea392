//go:build !race

package pac

// maxMemory is how many bytes the process may write to, the program's own included.
const maxMemory = 256 << 20
