package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
	"github.com/chainfs/chainfs/store"
)

// need is what a command needs of a tree that no daemon has open.
type need int

const (
	toLook    need = iota // read the graph, change nothing
	toWrite               // own the tree, recover, and work on it
	toAdopt               // toWrite, and make a tree of a directory that is none
	toInspect             // look at tree and store as they are
	toRecall              // toLook, and the journal must be there
)

// connection is a service and what must be closed after its use.
type connection struct {
	control.Service
	io.Closer
	notes []string
}

// connect finds who answers for the tree at a place: its daemon, or, where it
// has none, this process.
func connect(c *cli.Context, at place, n need) (connection, error) {
	if at.tree == "" && n != toAdopt {
		return connection{}, fmt.Errorf("%s is neither in a chainfs mount nor in a tree; mount it (chainfs mount), or make it a tree (chainfs scan DIR, with the tree's root)", chain.Printable(at.given))
	}
	for _, socket := range at.sockets {
		client, err := control.Dial(c.Context, socket)
		if err == nil {
			return connection{client, client, nil}, nil
		}
		if !errors.Is(err, control.ErrNoDaemon) {
			return connection{}, err
		}
	}
	if at.mount != nil {
		return connection{}, fmt.Errorf("the mount at %s answers, but its daemon's control socket %s does not; run the command where the daemon runs",
			at.mount.Point, at.sockets[0])
	}
	s, err := openAlone(c, at, n)
	if err != nil {
		return connection{}, err
	}
	return connection{s, s, s.notes}, nil
}

// finishing is how a scan finishes what is pending: at once, while its user waits.
var finishing = chain.Deferral{InlineLimit: -1, Keep: -1, Workers: 1}

func storeOf(c *cli.Context) string { return c.String("store") }

// openAlone opens a tree without a daemon.
func openAlone(c *cli.Context, at place, n need) (*session, error) {
	var notes []string
	var copying mountOptions
	for _, name := range []string{"verify", "limit-rate"} {
		if v := c.String(name); v != "" {
			if err := valueOptions[name](&copying, v); err != nil {
				return nil, err
			}
		}
	}
	opts := sessionOptions{
		Source: at.root, Store: storeOf(c), Log: quietLog(),
		Verify: copying.Verify, LimitRate: copying.LimitRate,
		ReadOnly:  n != toWrite && n != toAdopt,
		OpenStore: createStore,
	}
	if n == toAdopt {
		opts.Deferral = &finishing
	}
	bare := false
	if opts.ReadOnly {
		opts.OpenStore = func(dir, id string, log *slog.Logger) (*store.Store, error) {
			st, why := existingStore(dir, id, log)
			if why == nil {
				return st, nil
			}
			if n == toRecall {
				return nil, fmt.Errorf("%w; name the tree's store with --store", why)
			}
			if n == toInspect || !errors.Is(why, fs.ErrNotExist) {
				notes = append(notes, fmt.Sprintf("only the tree itself was looked at: %v", why))
			}
			bare = true
			return forgetfulStore(dir, id, log)
		}
	}
	s, err := openSession(opts)
	if err != nil {
		return nil, err
	}
	s.notes = notes
	if n == toInspect && !bare {
		return s, nil
	}
	if err := s.openChains(c.Context); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// existingStore opens a store that is there.
func existingStore(dir, id string, log *slog.Logger) (*store.Store, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("there is no store at %s: %w", dir, err)
	}
	return createStore(dir, id, log)
}

// quietLog is for commands that answer on stdout and fail in one line.
func quietLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
}

// withTree runs a command on the tree that the path leads into.
func withTree(c *cli.Context, path string, n need, act func(svc control.Service, p chain.Path) error) (err error) {
	at, err := locate(c.Context, path)
	if err != nil {
		return err
	}
	return at.use(c, n, func(svc control.Service) error { return explain(act(svc, at.path), at) })
}

// use connects, calls act and closes.
func (at place) use(c *cli.Context, n need, act func(control.Service) error) (err error) {
	conn, err := connect(c, at, n)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	for _, note := range conn.notes {
		fmt.Fprintf(c.App.ErrWriter, "chainfs: note: %s\n", chain.Printable(note))
	}
	return act(conn)
}

// explain says "there is no such file" with the name that the user gave.
func explain(err error, at place) error {
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, chain.ErrTreeGone) {
		return fmt.Errorf("%s: there is no such file or directory in the tree", chain.Printable(at.given))
	}
	return err
}
