"""A server that draws with the champion, says which model drew each picture, and follows the promotion channel."""
