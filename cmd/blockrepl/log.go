package main

import (
	"io"
	"log/slog"

	"github.com/lmittmann/tint"
)

// newLogger makes the server's log: JSON, or text that is coloured on a terminal.
// The level may change while it is written.
func newLogger(w io.Writer, cfg *Config, level slog.Leveler) *slog.Logger {
	if cfg.Log == "json" {
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
	}
	if !wantsColour(w) {
		return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
	}
	return slog.New(tint.NewTextHandler(w, &tint.Options{Level: level, TimeFormat: "15:04:05.000"}))
}
