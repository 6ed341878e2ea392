package convert

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestRoundsAreRepeatedUntilOneFailsOrTheContextEnds(t *testing.T) {
	fault := errors.New("fault")
	rounds := 0
	err := Repeat(t.Context(), time.Millisecond, func() error {
		if rounds++; rounds == 3 {
			return fault
		}
		return nil
	})
	if !errors.Is(err, fault) || rounds != 3 {
		t.Errorf("%v after %d rounds, want %v after 3", err, rounds, fault)
	}
	ctx, cancel := context.WithCancel(t.Context())
	rounds = 0
	err = Repeat(ctx, time.Hour, func() error {
		rounds++
		cancel()
		return context.Canceled
	})
	if err != nil || rounds != 1 {
		t.Errorf("%v after %d rounds, want none after 1", err, rounds)
	}
}
