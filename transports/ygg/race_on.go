//go:build race

package ygg

// raceDetector says that the race detector is built in. It would end every
// program that asks upstream for its peers or sessions: ironwood reads round
// trip times and byte counts there outside the actors that write them, which
// at worst makes one figure of one status wrong.
const raceDetector = true
