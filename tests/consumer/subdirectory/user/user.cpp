int parent();
int main() { return parent(); }
