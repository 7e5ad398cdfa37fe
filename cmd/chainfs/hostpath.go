package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A file system whose server hangs does not answer; whoever looks at it waits
// in the kernel. So every look at a path that a user gives has a time limit.
const lookLimit = 5 * time.Second

var errNoAnswer = errors.New("does not answer; its file system or the chainfs mount it is in may be hanging")

// inTime calls f and gives up waiting after lookLimit. f then goes on in vain.
func inTime[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	limit := time.NewTimer(lookLimit)
	defer limit.Stop()
	var none T
	select {
	case r := <-done:
		return r.value, r.err
	case <-limit.C:
		return none, errNoAnswer
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// resolve makes path absolute and follows symbolic links in its directory, not
// in its last element: to remove a link is not to remove what it leads to.
func resolve(path string) (string, error) {
	abs, err := absolute(path)
	if err != nil {
		return "", err
	}
	trimmed := strings.TrimRight(abs, "/")
	dir, base := filepath.Split(trimmed)
	if trimmed != abs || base == "" || base == "." || base == ".." {
		return filepath.EvalSymlinks(abs)
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", err
	}
	return filepath.Join(real, base), nil
}

// absolute is path below the working directory, not cleaned: ".." after a
// symbolic link is not what the text says.
func absolute(path string) (string, error) {
	if path == "" {
		return "", errors.New("the path is empty")
	}
	if filepath.IsAbs(path) {
		return path, nil
	}
	wd, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the working directory: %w", err)
	}
	return wd + "/" + path, nil
}

// realPath is path with all links resolved as far as it exists.
func realPath(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	for at, rest := abs, ""; ; at, rest = filepath.Dir(at), filepath.Join(filepath.Base(at), rest) {
		if real, err := filepath.EvalSymlinks(at); err == nil {
			return filepath.Join(real, rest)
		}
		if at == "/" {
			return abs
		}
	}
}

// within reports whether the clean absolute path is dir or lies below it.
func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// below is path relative to dir, which it is within.
func below(path, dir string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, strings.TrimSuffix(dir, "/")), "/")
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}
