// Command report runs go test with the arguments given and shows what matters: what failed with all its output, what
// was skipped with its reason, go test's line for each package, and which tests took the longest. With
// CVMFS_TEST_NO_SKIP=1 a skipped test is a failure.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"cvmfs-graphdriver/test/gotest"
)

// slowest is how many tests are named for the time they took.
const slowest = 40

func main() {
	cmd := exec.Command("go", append([]string{"test", "-json"}, os.Args[1:]...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "report: run go test:", err)
		os.Exit(1)
	}
	summary, err := gotest.Show(os.Stdout, out)
	err = errors.Join(err, cmd.Wait())
	fmt.Println("the slowest tests:")
	for _, line := range summary.Slowest(slowest) {
		fmt.Println(line)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "report: go test:", err)
		os.Exit(1)
	}
	if skipped := len(summary.Skipped); skipped > 0 && os.Getenv("CVMFS_TEST_NO_SKIP") == "1" {
		fmt.Fprintf(os.Stderr, "report: %d skipped, and CVMFS_TEST_NO_SKIP=1 wants all tests run\n", skipped)
		os.Exit(1)
	}
}
