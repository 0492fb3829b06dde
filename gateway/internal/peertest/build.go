package peertest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

const module = "github.com/yggate/yggate"

var (
	builtMu sync.Mutex
	built   = map[string]string{} // package -> program
)

// moduleRoot is the checkout that the working directory is in.
func moduleRoot() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		} else if !errors.Is(err, os.ErrNotExist) || dir == filepath.Dir(dir) {
			return "", fmt.Errorf("find go.mod at or above %s: %w", wd, err)
		}
	}
}

// tool is the path of a program that `make deps` builds.
func tool(name string) (string, error) {
	root, err := moduleRoot()
	return filepath.Join(root, ".cache", name), err
}

// Build compiles a command of this module ("cmd/yggate") as it is shipped,
// without cgo, once per process, and returns the program's path. The working
// directory must be within the module.
func Build(ctx context.Context, pkg string) (string, error) {
	builtMu.Lock()
	defer builtMu.Unlock()
	if program, ok := built[pkg]; ok {
		return program, nil
	}
	program, err := build(ctx, pkg)
	if err != nil {
		return "", fmt.Errorf("build %s: %w", pkg, err)
	}
	built[pkg] = program
	return program, nil
}

func build(ctx context.Context, pkg string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	// One folder for each checkout; each build gets a name of its own first,
	// so that test binaries that run side by side never see half a file.
	dir := filepath.Join(cache, "yggate-peertest", fmt.Sprintf("%x", sha256.Sum256([]byte(root)))[:12])
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	program := filepath.Join(dir, filepath.Base(pkg))
	part := fmt.Sprintf("%s.%d", program, os.Getpid())
	cmd := exec.CommandContext(ctx, "go", "build", "-o", part, module+"/"+pkg)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	if err := os.Rename(part, program); err != nil {
		return "", errors.Join(err, os.Remove(part))
	}
	return program, nil
}
