package node

import (
	"context"
	"sync/atomic"
	"testing"
	"time"
)

func TestStartsOfAnImageAreOneAtATime(t *testing.T) {
	s := newStarts()
	begin := func(key string, help func(context.Context)) {
		s.begin(key, func() func(context.Context) { return help })
	}
	running, proceed := make(chan struct{}), make(chan struct{})
	var ran atomic.Int32
	wait := func(context.Context) {
		ran.Add(1)
		running <- struct{}{}
		<-proceed
	}
	begin("a", wait)
	<-running
	begin("a", wait) // another container
	begin("b", wait)
	<-running
	close(proceed)
	s.work.Wait()
	if n := ran.Load(); n != 2 {
		t.Errorf("%d starts were helped, want one of each image", n)
	}
	count := func(context.Context) { ran.Add(1) }
	begin("a", count)
	s.work.Wait()
	s.settle("a")
	begin("a", count)
	s.work.Wait()
	if n := ran.Load(); n != 3 {
		t.Errorf("%d starts were helped, want a third until nothing was missing", n)
	}
	s.settled["a"] = time.Now().Add(-time.Second)
	begin("a", count)
	s.work.Wait()
	if n := ran.Load(); n != 4 {
		t.Errorf("%d starts were helped, want a fourth after a while", n)
	}
}

func TestAStartEndsWithItsImage(t *testing.T) {
	s := newStarts()
	s.stop("a") // there is none
	var ended atomic.Bool
	s.begin("a", func() func(context.Context) {
		return func(ctx context.Context) {
			<-ctx.Done()
			ended.Store(true)
		}
	})
	s.stop("b")
	if ended.Load() {
		t.Error("a start ends with another image")
	}
	s.stop("a")
	if !ended.Load() {
		t.Error("stop doesn't wait")
	}
	if s.life.Err() != nil || len(s.images) > 0 {
		t.Error("other starts can't be helped any more")
	}
}

func TestStartsEndWithTheNode(t *testing.T) {
	s := newStarts()
	ended := false // read once close has waited
	prepared := false
	s.begin("a", func() func(context.Context) {
		prepared = true
		return func(ctx context.Context) {
			<-ctx.Done()
			ended = true
		}
	})
	if !prepared {
		t.Error("a container starts before its start is prepared")
	}
	s.close()
	if !ended {
		t.Error("close doesn't wait")
	}
	s.begin("b", func() func(context.Context) {
		t.Error("a start is helped after the end")
		return func(context.Context) {}
	})
	s.work.Wait()
}
