package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// errNoSamples says that nothing was counted yet.
var errNoSamples = errors.New("there are no samples")

// metric reads a figure from a Prometheus endpoint: the sum of the samples of that
// name, whatever their labels.
func metric(ctx context.Context, addr, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, fmt.Errorf("read metric %s: %w", name, err)
	}
	defer res.Body.Close()
	sum, found := 0.0, false
	s := bufio.NewScanner(res.Body)
	for s.Scan() {
		rest, ok := strings.CutPrefix(s.Text(), name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("read metric %s: %w", name, err)
		}
		sum, found = sum+v, true
	}
	if err := s.Err(); err != nil {
		return 0, fmt.Errorf("read metric %s: %w", name, err)
	}
	if !found {
		return 0, fmt.Errorf("read metric %s of http://%s/metrics: %w", name, addr, errNoSamples)
	}
	return sum, nil
}
