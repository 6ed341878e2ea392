package main

import (
	"context"
	"io"
	"log/slog"
	"strings"
)

// handler writes errors to one stream and the rest to another: the engine logs a plugin's standard error as errors, and
// its standard output as information. A warning is none of the engine's errors; its own level stands in the line.
type handler struct{ low, high slog.Handler }

// newHandler makes a handler; debug is "1", "true" or "yes" for everything.
func newHandler(low, high io.Writer, debug string) slog.Handler {
	level := slog.LevelInfo
	switch strings.ToLower(debug) {
	case "1", "true", "yes":
		level = slog.LevelDebug
	}
	options := &slog.HandlerOptions{Level: level}
	return handler{slog.NewTextHandler(low, options), slog.NewTextHandler(high, options)}
}

func (h handler) of(level slog.Level) slog.Handler {
	if level >= slog.LevelError {
		return h.high
	}
	return h.low
}

func (h handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.of(level).Enabled(ctx, level)
}

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	return h.of(r.Level).Handle(ctx, r)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.low.WithAttrs(attrs), h.high.WithAttrs(attrs)}
}

func (h handler) WithGroup(name string) slog.Handler {
	return handler{h.low.WithGroup(name), h.high.WithGroup(name)}
}
