package objects

import (
	"testing"
	"testing/synctest"
	"time"
)

// Goroutines without a task are used again, end after a while, and with the store. The bubble sees that they do end.
func TestIdleGoroutinesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var work tasks
		many := func(n int) {
			release := make(chan struct{})
			for range n {
				if !work.start(func() { <-release }) {
					t.Fatal("no task was taken")
				}
			}
			close(release)
			synctest.Wait()
		}
		left := func() int {
			work.mu.Lock()
			defer work.mu.Unlock()
			return len(work.idle)
		}
		many(100)
		if n := left(); n != idleTasks {
			t.Errorf("%d goroutines stay after a hundred tasks, want %d", n, idleTasks)
		}
		time.Sleep(idleTime / 2)
		many(3)
		time.Sleep(idleTime * 3 / 4)
		synctest.Wait()
		if n := left(); n != 3 {
			t.Errorf("%d goroutines stay, want the 3 that were used", n)
		}
		time.Sleep(idleTime)
		synctest.Wait()
		if n := left(); n != 0 {
			t.Errorf("%d goroutines stay, though nothing was to do", n)
		}
		many(2)
		work.wait()
		synctest.Wait()
		if n := left(); n != 0 || work.start(func() {}) {
			t.Errorf("%d goroutines stay after the end, or there are tasks", n)
		}
	})
}
