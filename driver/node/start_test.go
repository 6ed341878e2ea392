package node

import (
	"context"
	"sync/atomic"
	"testing"
	"time"
)

func TestStartsOfAnImageAreOneAtATime(t *testing.T) {
	s := newStarts()
	running, proceed := make(chan struct{}), make(chan struct{})
	var ran atomic.Int32
	wait := func(context.Context) {
		ran.Add(1)
		running <- struct{}{}
		<-proceed
	}
	s.begin("a", wait)
	<-running
	s.begin("a", wait) // another container
	s.begin("b", wait)
	<-running
	close(proceed)
	s.work.Wait()
	if n := ran.Load(); n != 2 {
		t.Errorf("%d starts were helped, want one of each image", n)
	}
	count := func(context.Context) { ran.Add(1) }
	s.begin("a", count)
	s.work.Wait()
	s.settle("a")
	s.begin("a", count)
	s.work.Wait()
	if n := ran.Load(); n != 3 {
		t.Errorf("%d starts were helped, want a third until nothing was missing", n)
	}
	s.settled["a"] = time.Now().Add(-time.Second)
	s.begin("a", count)
	s.work.Wait()
	if n := ran.Load(); n != 4 {
		t.Errorf("%d starts were helped, want a fourth after a while", n)
	}
}

func TestStartsEndWithTheNode(t *testing.T) {
	s := newStarts()
	ended := false // read once close has waited
	s.begin("a", func(ctx context.Context) {
		<-ctx.Done()
		ended = true
	})
	s.close()
	if !ended {
		t.Error("close doesn't wait")
	}
	s.begin("b", func(context.Context) { t.Error("a start is helped after the end") })
	s.work.Wait()
}
