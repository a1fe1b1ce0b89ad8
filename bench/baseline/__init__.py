"""Control-flow orchestration to compare with: the same functions in the same containers, otherwise led and fed."""
