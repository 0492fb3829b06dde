//go:build !race

package store

const manyItems = 200_000
