//go:build !race

package ygg

// raceDetector is told of in race_on.go.
const raceDetector = false
