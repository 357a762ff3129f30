package tp

import (
	"fmt"
	"log/slog"
)

// userf logs a message of the program as it is.
func userf(level slog.Level, format string, args []interface{}) {
	if logEnabled(level) {
		output(level, fmt.Sprintf(format, args...))
	}
}

// Tracef logs at LevelTrace. Tracef and the functions below log the message as it is. Print an argument
// with %q if it is a text from the other side, which may have line ends in it.
func Tracef(format string, args ...interface{}) { userf(LevelTrace, format, args) }

// Debugf logs at LevelDebug.
func Debugf(format string, args ...interface{}) { userf(LevelDebug, format, args) }

// Infof logs at LevelInfo.
func Infof(format string, args ...interface{}) { userf(LevelInfo, format, args) }

// Noticef logs at LevelNotice.
func Noticef(format string, args ...interface{}) { userf(LevelNotice, format, args) }

// Warnf logs at LevelWarn.
func Warnf(format string, args ...interface{}) { userf(LevelWarn, format, args) }

// Errorf logs at LevelError.
func Errorf(format string, args ...interface{}) { userf(LevelError, format, args) }

// Criticalf logs at LevelCritical.
func Criticalf(format string, args ...interface{}) { userf(LevelCritical, format, args) }

// Printf logs whatever the level is.
func Printf(format string, args ...interface{}) {
	output(LevelInfo, fmt.Sprintf(format, args...))
}

// Panicf logs at LevelCritical, then panics with the message.
func Panicf(format string, args ...interface{}) {
	msg := fmt.Sprintf(format, args...)
	userf(LevelCritical, "%s", []interface{}{msg})
	panic(msg)
}

// Fatalf logs at LevelCritical, then ends the process with exit code 1.
func Fatalf(format string, args ...interface{}) {
	userf(LevelCritical, format, args)
	exitProcess(1)
}
