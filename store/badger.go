package store

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// memTableSize bounds what a write-ahead log holds before it becomes a table.
// The arena in memory is of the same size, and twice that while it is flushed.
// It also sets the largest transaction, 15 % of it, and with it the largest
// value outside the value log: below 7 MiB Badger refuses its own threshold.
const memTableSize = 8 << 20

// badgerOptions trade throughput, of which little is needed, for memory.
func badgerOptions(dir string) badger.Options {
	return badger.DefaultOptions(dir).
		WithSyncWrites(true).
		WithDetectConflicts(false). // mu makes writers one
		WithMemTableSize(memTableSize).
		WithNumMemtables(1).
		WithNumLevelZeroTables(2).
		WithNumLevelZeroTablesStall(6).
		WithNumCompactors(2).
		WithValueLogFileSize(4 << 20). // the map is twice that, and stays empty
		WithCompression(options.Snappy).
		WithBlockCacheSize(blockCacheSize).
		WithChecksumVerificationMode(options.OnBlockRead).
		WithMetricsEnabled(false)
}

// blockCacheSize is small because images are read once, at start.
const blockCacheSize = 1 << 20

// openBadger fails where Badger would go on with a part of the data.
func openBadger(how badger.Options, log *slog.Logger) (db *badger.DB, err error) {
	l := &badgerLog{log: log}
	err = calmly(func() (err error) {
		db, err = badger.Open(how.WithLogger(l))
		return err
	})
	if err == nil && l.ignored.Load() {
		err = errors.Join(errors.New("a table cannot be read"), db.Close())
	}
	return db, err
}

// calmly makes an error of a panic: Badger has some for bytes from disk that it
// does not expect.
func calmly(call func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("badger gave up: %v", r)
		}
	}()
	return call()
}

// badgerLog routes Badger's log: what it calls information is for debugging us.
type badgerLog struct {
	log     *slog.Logger
	ignored atomic.Bool // a damaged table was left out; the log is the only sign
}

func (l *badgerLog) Errorf(f string, args ...any) {
	if strings.HasPrefix(f, "Ignoring table") {
		l.ignored.Store(true)
	}
	l.log.Warn(line(f, args))
}
func (l *badgerLog) Warningf(f string, args ...any) { l.log.Warn(line(f, args)) }
func (l *badgerLog) Infof(f string, args ...any)    { l.log.Debug(line(f, args)) }
func (l *badgerLog) Debugf(f string, args ...any)   { l.log.Debug(line(f, args)) }

func line(format string, args []any) string {
	return "badger: " + strings.TrimSpace(fmt.Sprintf(format, args...))
}
