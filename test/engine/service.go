package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"
)

const (
	answerPoll = 100 * time.Millisecond
	startWait  = 90 * time.Second // until a started service answers; loading a plugin driver is part of an engine's
	stopWait   = 40 * time.Second // until one told to end has ended; an engine gives each plugin 10 s
)

// Service is a program that runs in the engine's namespaces. Its methods are not for concurrent use.
type Service struct {
	name    string
	process process
	orders  io.Writer
	events  chan event // those about it; closed when the keeper is gone
}

// Service returns a program that is to run beside the engine, which needs a name of its own. It isn't started yet. Its
// output goes to the file NAME.log in the engine's folder.
func (e *Engine) Service(name string, argv ...string) *Service {
	s := &Service{
		name: name, process: process{Argv: argv, Env: e.environ(), Log: e.path(name + ".log")},
		orders: e.orders, events: make(chan event, 16),
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.services[name] = s
	return s
}

// Log is what the service has said over all its starts.
func (s *Service) Log() string {
	b, err := os.ReadFile(s.process.Log)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err.Error()
	}
	return string(b)
}

// Start starts the service and waits until answers has no error. The error of one that doesn't start has the lines in
// which it says why.
func (s *Service) Start(ctx context.Context, answers func(ctx context.Context) error) error {
	said := len(s.Log())
	err := s.order(orderStart)
	if err == nil {
		err = s.await(ctx, eventStarted)
	}
	if err == nil {
		err = s.awaitAnswer(ctx, answers)
	}
	if err != nil {
		return fmt.Errorf("start the %s: %w%s", s.name, err, complaints(s.Log()[said:]))
	}
	return nil
}

// awaitAnswer waits until the service answers, or has ended.
func (s *Service) awaitAnswer(ctx context.Context, answers func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	for {
		err := answers(ctx)
		if err == nil {
			return nil
		}
		select {
		case e := <-s.events:
			return fmt.Errorf("it %s %s", e.What, e.How)
		case <-ctx.Done():
			return fmt.Errorf("wait for its answer: %w: %w", ctx.Err(), err)
		case <-time.After(answerPoll):
		}
	}
}

// complaints picks the lines of a log in which a service says why it does not start.
func complaints(log string) string {
	var b strings.Builder
	for line := range strings.Lines(log) {
		if strings.Contains(line, "level=error") || strings.Contains(line, "level=fatal") ||
			!strings.HasPrefix(line, "time=") {
			b.WriteString("\n  " + strings.TrimRight(line, "\n"))
		}
	}
	return b.String()
}

// Stop asks the service to end and waits for it.
func (s *Service) Stop(ctx context.Context) error { return s.end(ctx, orderTerm) }

// Kill ends the service's process, as kill -9 does, and nothing else.
func (s *Service) Kill(ctx context.Context) error { return s.end(ctx, orderKill) }

func (s *Service) end(ctx context.Context, order string) error {
	ctx, cancel := context.WithTimeout(ctx, stopWait)
	defer cancel()
	s.forget()
	err := s.order(order)
	if err == nil {
		err = s.await(ctx, eventExited)
	}
	if err != nil {
		return fmt.Errorf("%s the %s: %w", order, s.name, err)
	}
	return nil
}

// await waits for an event. What lies before it is old: a service may have ended by itself.
func (s *Service) await(ctx context.Context, what string) error {
	for {
		select {
		case e, ok := <-s.events:
			switch {
			case !ok:
				return errors.New("its keeper is gone")
			case e.What == eventFailed:
				return fmt.Errorf("%s %s", e.What, e.How)
			case e.What == what:
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("wait until it has %s: %w", what, ctx.Err())
		}
	}
}

// forget drops the events there are: one that ended by itself, and was restarted from inside.
func (s *Service) forget() {
	for {
		select {
		case _, ok := <-s.events:
			if !ok {
				return
			}
		default:
			return
		}
	}
}

func (s *Service) order(do string) error {
	o := order{Do: do, Service: s.name}
	if do == orderStart {
		o.Process = s.process
	}
	return json.NewEncoder(s.orders).Encode(o)
}

// route hands the keeper's events to the services they are about, until the keeper is gone.
func (e *Engine) route(events io.Reader) {
	for in := json.NewDecoder(events); ; {
		var said event
		err := in.Decode(&said)
		e.mu.Lock()
		if err != nil {
			for _, s := range e.services {
				close(s.events)
			}
			clear(e.services)
			e.mu.Unlock()
			return
		}
		s := e.services[said.Service]
		e.mu.Unlock()
		if s != nil {
			s.hear(said)
		}
	}
}

// hear keeps an event; where nobody has asked for long the oldest one goes.
func (s *Service) hear(e event) {
	for {
		select {
		case s.events <- e:
			return
		default:
		}
		select {
		case <-s.events:
		default:
		}
	}
}
