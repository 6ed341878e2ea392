package program

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cleaning, in the environment, makes the test program one that takes a while to clean up.
const cleaning = "PROGRAM_TEST_CLEANS"

// clean is such a program.
func clean(ctx context.Context, _ []string, out, _ io.Writer) int {
	fmt.Fprintln(out, "runs")
	<-ctx.Done()
	time.Sleep(300 * time.Millisecond)
	fmt.Fprintln(out, "cleaned up")
	return Done
}

// As timeout(1) sends its signal: to the program, and to its group, in which it is, too.
func TestASignalThatComesTwiceLetsTheProgramCleanUp(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), cleaning+"=1")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	rest, _ := io.ReadAll(lines)
	if err := cmd.Wait(); err != nil || strings.TrimSpace(string(rest)) != "cleaned up" {
		t.Errorf("it says %q, and ends with %v", rest, err)
	}
}
