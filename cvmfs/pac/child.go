package pac

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"github.com/robertkrimen/otto"
)

// Main evaluates a script and ends the process, if that is what the process was started for.
func Main() {
	if len(os.Args) != 2 || os.Args[1] != argument {
		return
	}
	_ = time.Now().Local().Hour() // reads the time zone's file while there are files
	debug.SetMaxStack(maxStack)
	err := confine()
	if err == nil {
		err = evaluate(json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// evaluate answers one request.
func evaluate(in *json.Decoder, out *json.Encoder) error {
	var r request
	if err := in.Decode(&r); err != nil {
		return err
	}
	e := &environment{own: r.Addresses, now: time.Now(), known: map[string]addresses{}, in: in, out: out}
	answers, err := e.run(r)
	switch {
	case e.err != nil:
		return e.err // the parent doesn't answer
	case err != nil:
		return out.Encode(reply{Err: err.Error()})
	}
	return out.Encode(reply{Answers: answers})
}

// environment is what a script sees of the world.
type environment struct {
	own   addresses
	now   time.Time
	known map[string]addresses

	in  *json.Decoder
	out *json.Encoder
	err error // of asking the parent
}

// run evaluates the script and asks it.
func (e *environment) run(r request) ([]string, error) {
	vm := otto.New()
	vm.SetStackDepthLimit(maxDepth)
	for name, function := range e.functions() {
		if err := vm.Set(name, wrapped(vm, function)); err != nil {
			return nil, err
		}
	}
	if _, err := vm.Run(r.Script); err != nil {
		return nil, err
	}
	answers := make([]string, 0, len(r.Questions))
	for _, q := range r.Questions {
		v, err := vm.Call("FindProxyForURL", nil, q.URL, q.Host)
		if err != nil {
			return nil, fmt.Errorf("FindProxyForURL: %w", err)
		}
		answer, err := v.ToString()
		if err != nil {
			return nil, err
		}
		answers = append(answers, answer)
	}
	return answers, nil
}

// function is a function for scripts. It returns a bool, a float64, a string or nil.
type function func(args []otto.Value) any

func wrapped(vm *otto.Otto, f function) func(otto.FunctionCall) otto.Value {
	return func(call otto.FunctionCall) otto.Value {
		v, err := vm.ToValue(f(call.ArgumentList))
		if err != nil {
			return otto.UndefinedValue()
		}
		return v
	}
}

// lookUp asks the parent for the addresses of a name, once.
func (e *environment) lookUp(name string) addresses {
	if found, ok := e.known[name]; ok || name == "" || e.err != nil {
		return found
	}
	var found addresses
	if e.err = e.out.Encode(reply{Name: name}); e.err == nil {
		e.err = e.in.Decode(&found)
	}
	if errors.Is(e.err, io.EOF) {
		e.err = io.ErrUnexpectedEOF
	}
	e.known[name] = found
	return found
}
